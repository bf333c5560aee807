"""Image and video towers, safe image reading, tiling and frame sampling."""
