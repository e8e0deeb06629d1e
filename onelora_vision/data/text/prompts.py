"""How a question becomes the prompt of a language model."""

from onelora_vision.errors import InputError, nearest, one_line

QUERY = "{query}"
#: The prompt of MetaMath (arXiv 2309.12284) as its README has it: Alpaca's, ended by a call for steps.
METAMATH = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{query}\n\n### Response: Let's think step by step."
)
TEMPLATES = {"metamath": METAMATH, "none": QUERY}
_LONGEST_NAME = 40


def find_template(given: str) -> str:
    """The template that ``--prompt_template`` names or is.

    Raises:
        InputError: it is neither a name of `TEMPLATES` nor a text with ``{query}`` in it.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    if QUERY in given:
        return given
    hint = nearest(given, TEMPLATES, "template") if len(given) < _LONGEST_NAME else ""
    raise InputError(
        f"--prompt_template {one_line(given, 60)}: neither {' nor '.join(TEMPLATES)} nor a text with {QUERY} in it{hint}"
    )


def prompt_of(query: str, template: str) -> str:
    """The prompt of a question; braces in the question mean nothing."""
    before, _, after = template.partition(QUERY)
    return before + query + after
