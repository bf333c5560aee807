"""VisionThink: look at a quarter of the pixels first, ask for the rest only when they are needed.

The method has no weights of its own: it is a protocol between a chat model and its runner, and the reinforcement
learning that teaches the model when to ask.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348).
"""

from mm.pruning.visionthink.advantage import grpo_advantages
from mm.pruning.visionthink.format import extract_answer, format_reward
from mm.pruning.visionthink.generator import AdaptiveAnswer, AdaptiveGenerator
from mm.pruning.visionthink.grpo import grpo_loss
from mm.pruning.visionthink.labels import label_by_rollouts
from mm.pruning.visionthink.mrope import mrope_positions
from mm.pruning.visionthink.packing import pack_trajectories
from mm.pruning.visionthink.protocol import ToolProtocol
from mm.pruning.visionthink.resolution import ResolutionPolicy, token_grid
from mm.pruning.visionthink.reward import group_rewards
from mm.pruning.visionthink.tool_call import parse_tool_call

__all__ = [
    "AdaptiveAnswer",
    "AdaptiveGenerator",
    "ResolutionPolicy",
    "ToolProtocol",
    "extract_answer",
    "format_reward",
    "group_rewards",
    "grpo_advantages",
    "grpo_loss",
    "label_by_rollouts",
    "mrope_positions",
    "pack_trajectories",
    "parse_tool_call",
    "token_grid",
]
