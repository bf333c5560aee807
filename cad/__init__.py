"""From a picture to an editable CAD program. Import as `mm.cad`."""
