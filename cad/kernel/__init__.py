"""Programs become solids: an exact kernel (OpenCASCADE) and a light one on meshes (Manifold), both behind `build`."""

from mm.cad.kernel.evaluate import build
from mm.cad.kernel.solid import Solid, load_solid
from mm.cad.kernel.status import BuildError, Limits, Outcome, Status

__all__ = ["BuildError", "Limits", "Outcome", "Solid", "Status", "build", "load_solid"]
