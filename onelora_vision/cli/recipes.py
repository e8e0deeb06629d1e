"""``onelora recipes``: list the settings of published experiments that come with the package."""

import argparse

from onelora_vision.training.recipes import Recipe, find_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", help="dit, classification, depth or language (default: all)")


def run(args: argparse.Namespace) -> list[dict]:
    return [_row(recipe) for recipe in find_recipes(args.task)]


def _row(recipe: Recipe) -> dict:
    return {"name": recipe.name, "task": recipe.task, "about": recipe.about, "file": str(recipe.file)}


def show(rows: list[dict], args: argparse.Namespace) -> None:
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['task']:<14}  {row['about']}")
    print(f"\nonelora train {rows[0]['task']} --config {rows[0]['name']}")
