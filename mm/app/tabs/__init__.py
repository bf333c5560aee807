"""The tabs of `mm app`, one file per modality; `mm.catalog.TABS` lists them, docs/add_a_tab.md shows the pattern."""
