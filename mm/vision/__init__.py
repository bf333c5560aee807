"""Eyes: vision towers of three libraries behind one interface, picture reading, preprocessing, tiles and frames."""

from mm.vision.build import build_tower, wrap_tower
from mm.vision.config import TowerConfig
from mm.vision.frames import sample_frames
from mm.vision.image_io import MAX_PIXELS, load_image
from mm.vision.preprocessing import CLIP_MEAN, CLIP_STD, ImagePreprocessing, ImageProcessor
from mm.vision.tiling import GRIDS, TiledImage, TileGeometry, choose_grid, tile_image
from mm.vision.tower import VisionFeatures, VisionTower
from mm.vision.video_io import VideoClip, VideoFrame, VideoInfo, iter_frames, probe_video, read_video

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "GRIDS",
    "MAX_PIXELS",
    "ImagePreprocessing",
    "ImageProcessor",
    "TileGeometry",
    "TiledImage",
    "TowerConfig",
    "VideoClip",
    "VideoFrame",
    "VideoInfo",
    "VisionFeatures",
    "VisionTower",
    "build_tower",
    "choose_grid",
    "iter_frames",
    "load_image",
    "probe_video",
    "read_video",
    "sample_frames",
    "tile_image",
    "wrap_tower",
]
