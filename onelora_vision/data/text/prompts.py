"""Turning questions into prompts for a language model."""

from collections.abc import Sequence

from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.storage.textfiles import require_unicode

QUERY = "{query}"
#: The prompt in the README of MetaMath (arXiv 2309.12284): Alpaca's, followed by a request for steps.
METAMATH = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{query}\n\n### Response: Let's think step by step."
)
TEMPLATES = {"metamath": METAMATH, "none": QUERY}
_LONGEST_NAME = 40


def find_template(given: str) -> str:
    """Return the template for ``--prompt_template``, given by name or as text.

    Raises:
        InputError: ``given`` is neither a name in `TEMPLATES` nor a text that contains ``{query}``.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    if QUERY in given:
        return given
    hint = nearest(given, TEMPLATES, "template") if len(given) < _LONGEST_NAME else ""
    raise InputError(
        f"--prompt_template {one_line(given, 60)}: neither {' nor '.join(TEMPLATES)} nor a text with {QUERY} in it{hint}"
    )


def require_questions(given: Sequence[str]) -> None:
    """Check that the questions can be asked.

    Raises:
        InputError: ``given`` is not a sequence of strings, or one of them is empty or not Unicode.
    """
    if isinstance(given, str) or not all(isinstance(question, str) for question in given):
        raise InputError('expected a list of questions, such as ["What is 2 plus 3?"]')
    for number, question in enumerate(given, 1):
        what = f"question {number}" if len(given) > 1 else "the question"
        if not question.strip():
            raise InputError(f"{what} is empty: give its text")
        require_unicode(question, what)


def prompt_of(query: str, template: str) -> str:
    """Make the prompt for a question. Braces in the question have no special meaning."""
    before, _, after = template.partition(QUERY)
    return before + query + after
