"""``onelora predict`` for language: answers to questions on the command line or in lines of text files."""

import argparse
from pathlib import Path

from onelora_vision.data.text.prompts import require_questions
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.runtime.progress import progress
from onelora_vision.storage.textfiles import read_lines

BATCH = 16


def predict(args: argparse.Namespace) -> list[dict]:
    """Return an answer to each question in ``args.inputs``, for printing."""
    for name in ("top", "output", "overwrite", "npy", "near", "far"):
        if getattr(args, name) not in (None, False):
            raise InputError(f"--{name} is for pictures; {args.adapter} answers questions")
    questions = _questions(args.inputs)
    answerer, rows = load_adapted(args.adapter, args.base, args.device), []
    starts = range(0, len(questions), BATCH)
    for start in progress(starts, len(starts), desc="answering", unit="batch"):
        part = questions[start : start + BATCH]
        answers = answerer.answer(part, max_new_tokens=args.max_new_tokens, batch_size=BATCH)
        rows += [{"prompt": question, "completion": answer} for question, answer in zip(part, answers)]
    return rows


def _questions(given: list[str]) -> list[str]:
    """Return the questions: the lines of text files, or the arguments themselves.

    Raises:
        InputError: a file has no questions, a question cannot be asked, or a ``.txt`` file does not exist.
    """
    found = []
    for text in given:
        if Path(text).suffix == ".txt" or (len(text) < 256 and Path(text).is_file()):
            lines = [line for line in read_lines(text) if line]
            if not lines:
                raise InputError(f"{text}: holds no questions; give one per line")
            found += lines
        else:
            found.append(text)
    require_questions(found)
    return found
