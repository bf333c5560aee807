"""Packaged run configurations: `mm fit --config lavi/tiny` finds `lavi/tiny.yaml` in this folder."""
