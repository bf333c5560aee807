"""One file per word after `mm` that belongs to no single system; each offers `run(argv) -> exit code`."""
