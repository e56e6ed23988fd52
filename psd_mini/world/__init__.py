"""The toy world: a few small objects in a few colours, their pictures, the words for them, and
the judge of results."""
