"""The toy world: a few objects in a few colours, their pictures and words, and the judge."""
