"""``onelora doctor``: check an adapter file for problems, on its own or together with its base."""

import argparse

from onelora_vision.cli.inputs import require_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="adapter folder, .safetensors file, .zip or hub id")
    parser.add_argument("--base", help="the base model, to check the adapter on it")


def run(args: argparse.Namespace) -> dict:
    from onelora_vision.adapters.hub import local_adapter

    adapter = local_adapter(args.adapter)
    require_path(adapter)
    from onelora_vision.adapters.inspection import PROBLEM, examine

    findings = examine(adapter, args.base)
    problems = sum(finding["level"] == PROBLEM for finding in findings)
    return {"file": args.adapter, "base": args.base, "problems": problems, "findings": findings}


def show(result: dict, args: argparse.Namespace) -> None:
    for finding in result["findings"]:
        print(f"{finding['level']:<8} {finding['check']:<10} {finding['text']}")
    where = f" on {result['base']}" if result["base"] else ""
    print(f"{result['file']}{where}: {result['problems'] or 'no'} problem{'s' * (result['problems'] != 1)}")


def exit_code(result: dict) -> int:
    return 2 if result["problems"] else 0
