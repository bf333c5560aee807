"""Procedural data sets and readers of the formats of the field."""
