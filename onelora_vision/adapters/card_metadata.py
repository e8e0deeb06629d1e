"""The YAML front matter of a model card, in the form that the Hugging Face hub validates and displays."""

import math
import re
from pathlib import Path

import yaml

from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import one_line
from onelora_vision.metrics.direction import is_beside, is_retention

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
#: Licences that the hub knows by name. Any other is ``other`` with a ``license_name``.
LICENSES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "openrail++",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "ms-pl",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "osl-3.0",
        "postgresql",
        "ofl-1.1",
        "ncsa",
        "unlicense",
        "zlib",
        "pddl",
        "unknown",
        "other",
    ]
)


def front_matter(info) -> str:
    """The front matter of an adapter's card; ``info`` is its `AdapterInfo`.

    ``base_model`` and ``datasets`` are included only if they are hub ids. A licence that the hub does not know is
    ``other`` with a ``license_name``.
    """
    license = info.license.lower() if info.license.lower() in LICENSES else "other"
    dataset = _training_facts(info).get("dataset", "")
    fields = {
        "library_name": "peft",
        "base_model": _hub_base(info),
        "license": license,
        "license_name": info.license if license == "other" and info.license.lower() != "other" else None,
        "pipeline_tag": TASKS[info.task].hub if info.task in TASKS else None,
        "datasets": [dataset] if _is_hub_id(dataset) else None,
        "tags": ["onelora_vision", *([info.method] if info.method else [])],
        "model-index": _model_index(info, str(dataset)),
    }
    given = {name: value for name, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(given, sort_keys=False, allow_unicode=True)}---"


def _training_facts(info) -> dict:
    facts = info.extra.get("training")
    return facts if isinstance(facts, dict) else {}


def _is_hub_id(text: object) -> bool:
    return isinstance(text, str) and bool(_HUB_ID.fullmatch(text)) and not Path(text).exists()


def _hub_base(info) -> str | None:
    """The hub id of the base. A timm name with a tag for its weights is a repository of timm."""
    host = info.extra.get("host")
    is_timm_name = (
        isinstance(host, dict) and host.get("library") == "timm" and "." in info.base and "/" not in info.base
    )
    if is_timm_name and not Path(info.base).exists():
        return f"timm/{info.base}" if _is_hub_id(f"timm/{info.base}") else None
    return info.base if _is_hub_id(info.base) and not info.base.startswith("embedded/") else None


def _model_index(info, dataset: str) -> list[dict] | None:
    """The metrics after training as a ``model-index``; None without a known task or a metric of the dataset."""
    after = info.metrics.get("after", {})
    metrics = [
        {"type": one_line(name, 60), "value": value}
        for name, value in (after.items() if isinstance(after, dict) else ())
        if type(value) in (int, float)
        and math.isfinite(value)
        and not (is_beside(str(name)) or is_retention(str(name)))
    ]
    if info.task not in TASKS or not metrics:
        return None
    name = one_line(dataset or info.data or "unnamed", 100)
    result = {
        "task": {"type": TASKS[info.task].hub},
        "dataset": {"type": re.sub(r"[^\w./-]+", "-", name), "name": name},
        "metrics": metrics,
    }
    return [
        {
            "name": one_line(f"{info.method or 'adapter'} for {info.base or 'an unnamed base'}", 200),
            "results": [result],
        }
    ]
