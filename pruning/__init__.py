"""Fewer visual tokens around existing vision-language models. Import as `mm.pruning`."""
