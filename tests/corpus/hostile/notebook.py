{
 "cells": [{"cell_type": "code", "execution_count": null, "metadata": {}, "outputs": [],
   "source": ["def sds(x): return x\n"]}],
 "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5
}
