"""Vision and text encoders: LaVi, FLAME, E-ViLM. Import as `mm.encoders`."""
