"""Lightning base module, callbacks, optimiser groups and the training command line."""
