"""Fail if two wheels hold different files: the one built from the tree and the one built from the sdist."""

from __future__ import annotations

import sys
from zipfile import ZipFile

tree, sdist = (set(ZipFile(path).namelist()) for path in sys.argv[1:3])
if tree != sdist:
    sys.exit(f"only in the tree's wheel: {sorted(tree - sdist)}; only in the sdist's: {sorted(sdist - tree)}")
print(f"both wheels hold the same {len(tree)} files")
