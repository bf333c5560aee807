"""How pruned pictures enter each kind of vision-language model."""

from mm.pruning.hosts.base import Host, Picture
from mm.pruning.hosts.choose import open_host

__all__ = ["Host", "Picture", "open_host"]
