"""What is said between runner and model: the tool, the instructions, and the observations that come back.

Tags, function name and action are the published ones; the wording is ours and every text can be replaced, which the
published weights may ask for. Turns are appended as token ids, without the newline of chat templates between turns.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.2 and appendix on prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mm.pruning.visionthink.tool_call import ACTION, CLOSE, FUNCTION, OPEN

VISION = "<|vision_start|><|image_pad|><|vision_end|>"
"""One picture in a prompt of Qwen2-VL and Qwen2.5-VL."""
CALL_TEXT = json.dumps({"name": FUNCTION, "arguments": {"action": ACTION}})
"""The call that a model is expected to write between the tags."""

START, END = "<|im_start|>", "<|im_end|>"
OPENED = f"{START}assistant\n"
"""Where the assistant begins to write."""

_SIGNATURE = {
    "type": "function",
    "function": {
        "name_for_human": FUNCTION,
        "name": FUNCTION,
        "description": "Change the resolution of the picture.",
        "parameters": {
            "properties": {
                "action": {
                    "description": (
                        "The one action there is: `resize` doubles the resolution of the picture. Use it only when "
                        "something that decides the answer cannot be made out at the present resolution."
                    ),
                    "enum": [ACTION],
                    "type": "string",
                }
            },
            "required": ["action"],
            "type": "object",
        },
        "args_format": "Write the arguments as a JSON object.",
    },
}

_SYSTEM = f"""You are a helpful assistant.

# Tools

You may call a function to help with the question.

Functions are described between <tools> and </tools>:
<tools>
{json.dumps(_SIGNATURE)}
</tools>

To call one, return a JSON object with its name and arguments between {OPEN} and {CLOSE}:
{OPEN}
{{"name": <function name>, "arguments": <arguments as JSON object>}}
{CLOSE}"""

_INSTRUCTIONS = f"""Answer the question from the picture. At every step think first, between <think> and </think>. \
A step may end with at most one function call, between {OPEN} and {CLOSE}; go on thinking from what it returns. \
Give the final answer between <answer> and </answer>, with the value of a calculation or the letter of a choice \
inside \\boxed{{}}. Here are the picture and the question:
"""


@dataclass(frozen=True, kw_only=True)
class ToolProtocol:
    """All texts of the protocol; `{vision}` stands for the picture, `{question}` and `{error}` for what they say."""

    system: str = _SYSTEM
    """System turn: the function and how to call it."""
    question: str = _INSTRUCTIONS + "{vision}\n{question}"
    """First user turn: everything constant stands before the picture, so that its keys and values can be cached."""
    image_observation: str = (
        "<tool_response>\nThe resized picture:\n{vision}\n</tool_response>\n"
        "Combine it with the first picture and the question. Think between <think> and </think> and answer between "
        "<answer> and </answer>."
    )
    """User turn after a valid call."""
    error_observation: str = (
        "<tool_response>\nError: {error}\n</tool_response>\n"
        "See what went wrong, change the call or go on without it, and keep thinking."
    )
    """User turn after a call that cannot be followed."""
    vision: str = VISION
    """One picture."""

    def __post_init__(self) -> None:
        for name, parts in (
            ("question", ("{vision}", "{question}")),
            ("image_observation", ("{vision}",)),
            ("error_observation", ("{error}",)),
        ):
            missing = [part for part in parts if part not in getattr(self, name)]
            if missing:
                raise ValueError(f"the text {name!r} of the protocol must contain {', '.join(missing)}")

    def first_turn(self, question: str, pictures: int = 1) -> str:
        """The first user turn with its pictures."""
        return self._filled(self.question, vision=self.vision * pictures, question=question)

    def image_turn(self, pictures: int = 1) -> str:
        """The user turn that brings the full pictures."""
        return self._filled(self.image_observation, vision=self.vision * pictures)

    def error_turn(self, error: str) -> str:
        """The user turn that explains a failed call."""
        return self._filled(self.error_observation, error=error)

    def messages(self, question: str, pictures: int = 1) -> list[dict[str, Any]]:
        """System and first user turn as chat messages."""
        turns = (("system", self.system), ("user", self.first_turn(question, pictures)))
        return [{"role": role, "content": text} for role, text in turns if text]

    def prompt_ids(self, question: str, tokenizer: Any, pictures: int = 1) -> list[int]:
        """Token ids of the prompt, one image token per picture, with the turn of the assistant opened."""
        turns = (f"{START}{turn['role']}\n{turn['content']}{END}\n" for turn in self.messages(question, pictures))
        return _ids("".join(turns) + OPENED, tokenizer)

    def observation_ids(self, text: str, tokenizer: Any) -> list[int]:
        """Token ids that append a user turn and open the next turn of the assistant."""
        return _ids(f"{START}user\n{text}{END}\n{OPENED}", tokenizer)

    @staticmethod
    def _filled(text: str, **values: str) -> str:
        """Not `str.format`: the texts hold JSON braces."""
        for name, value in values.items():
            text = text.replace("{" + name + "}", value)
        return text


def _ids(text: str, tokenizer: Any) -> list[int]:
    found: Sequence[int] = tokenizer(text, add_special_tokens=False).input_ids
    return list(found)
