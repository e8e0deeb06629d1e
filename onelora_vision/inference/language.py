"""Question answering by a language model with an adapter."""

from collections.abc import Sequence

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.language import LanguageBase
from onelora_vision.data.text.prompts import METAMATH, find_template, prompt_of, require_questions


class Answerer:
    """Answers questions with an adapter, using the prompt that it was trained with.

    Attributes:
        base: the language model with the adapter on its network.
        template: the prompt, with ``{query}`` in place of the question.

    Raises:
        InputError: the adapter's file names an unknown prompt.
    """

    def __init__(self, base: LanguageBase, info: AdapterInfo):
        self.base, self.info = base, info
        given = info.extra.get("prompt_template")
        self.template = find_template(given) if given else METAMATH

    def answer(
        self, questions: Sequence[str], *, max_new_tokens: int | None = None, batch_size: int = 16
    ) -> list[str]:
        """Answer each question by greedy decoding.

        Args:
            max_new_tokens: maximum number of tokens of an answer (default: as in the evaluation during training).

        Raises:
            InputError: ``questions`` is not a sequence of texts, or one of them is empty or too long for the model.
        """
        require_questions(questions)
        prompts = [prompt_of(question, self.template) for question in questions]
        most = max_new_tokens or self.info.extra.get("max_new_tokens") or 256
        return self.base.complete(prompts, max_new_tokens=most, batch_size=batch_size)
