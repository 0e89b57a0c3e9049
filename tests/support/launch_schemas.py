"""Launch files against the schemas that their systems publish; run with the interpreter of the environment "launch".

    python launch_schemas.py FILE...      one line a file: its name, and what is wrong with it or "valid"

Kubernetes: the OpenAPI of 1.33 as kubernetes-validate packs it, strictly. JobSet and PyTorchJob: the models of
Kubeflow's clients, and their pods by Kubernetes' own. SkyPilot: its JSON schemas.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

VERSION = "1.33"
# Of SkyPilot 0.14; the schema of services, of which a pool is one, asks for all of its server.
POOL = {"workers", "min_workers", "max_workers", "queue_length_threshold", "upscale_delay_seconds",
        "downscale_delay_seconds"}  # fmt: skip


def problems(file: Path) -> Iterator[str]:
    """What is wrong with a launch file."""
    data = yaml.safe_load(file.read_text())
    kind = data.get("kind")
    if kind is None:
        yield from _sky(data)
    elif kind == "Job":
        yield from _kubernetes(data)
    elif kind == "JobSet":
        yield from _jobset(data)
        for job in data["spec"]["replicatedJobs"]:
            yield from _kubernetes(
                {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job["template"]}
            )
    elif kind == "PyTorchJob":
        yield from _known(data, "KubeflowOrgV1PyTorchJob")
        for replicas in data["spec"]["pytorchReplicaSpecs"].values():
            # The operator sets the pods' restartPolicy.
            pod = {**replicas["template"]["spec"], "restartPolicy": "Never"}
            yield from _kubernetes({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod})
    else:
        yield f"no schema of {kind} is known"


def _kubernetes(data: dict[str, Any]) -> Iterator[str]:
    validate = importlib.import_module("kubernetes_validate")
    try:
        validate.validate(data, VERSION, strict=True)
    except (validate.ValidationError, validate.SchemaNotFoundError) as exc:
        yield str(exc).splitlines()[0]


def _jobset(data: dict[str, Any]) -> Iterator[str]:
    models = importlib.import_module("kubeflow_trainer_api.models")
    try:
        read = models.JobsetV1alpha2JobSet.from_dict(data).to_dict()
    except ValueError as exc:
        yield str(exc)
        return
    yield from _lost(data, read, "JobSet")


def _lost(given: Any, read: Any, where: str) -> Iterator[str]:
    """Fields that a model, which passes over what it doesn't know, didn't keep."""
    if isinstance(given, dict):
        for name, value in given.items():
            if not isinstance(read, dict) or name not in read:
                yield f"{where} has no field {name}"
            else:
                yield from _lost(value, read[name], f"{where}.{name}")
    elif isinstance(given, list):
        for at, value in enumerate(given):
            yield from _lost(value, read[at], f"{where}[{at}]")


def _known(data: Any, type_name: str) -> Iterator[str]:
    """Fields of a model of Kubeflow's training client, which is read and not imported: it wants a whole client."""
    if inner := re.fullmatch(r"(?:list\[|dict\(str, )(\w+)[\])]", type_name):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _known(value, inner[1])
        return
    if not type_name.startswith("KubeflowOrgV1"):
        plain = {"str": str, "int": int, "bool": bool, "float": float}.get(type_name, object)
        if not isinstance(data, plain):
            yield f"expected {type_name}, got {data!r}"
        return
    types_of, names = _model(type_name)
    for name, value in data.items():
        if name not in names:
            yield f"{type_name} has no field {name}"
        else:
            yield from _known(value, types_of[names[name]])


def _model(type_name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Types of a model's fields, and the fields by their names in YAML."""
    found = importlib.util.find_spec("kubeflow")
    assert found is not None and found.submodule_search_locations
    folder = Path(next(iter(found.submodule_search_locations)), "training", "models")
    for file in folder.glob("kubeflow_org_v1_*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name == type_name:
                values = {
                    target.id: ast.literal_eval(line.value)
                    for line in node.body if isinstance(line, ast.Assign)
                    for target in line.targets if isinstance(target, ast.Name) and isinstance(line.value, ast.Dict)
                }  # fmt: skip
                return values["openapi_types"], {name: field for field, name in values["attribute_map"].items()}
    raise LookupError(type_name)


def _sky(data: dict[str, Any]) -> Iterator[str]:
    from jsonschema import Draft202012Validator

    schemas = _sky_schemas()
    parts = [(data, schemas.get_task_schema()), (data.get("resources", {}), schemas.get_resources_schema())]
    for part, schema in parts:
        yield from (error.message for error in Draft202012Validator(schema).iter_errors(part))
    recovery = data.get("resources", {}).get("job_recovery", {})  # whose schema lets plugins add to it
    yield from (f"pool has no {name}" for name in {*data.get("pool", {})} - POOL)
    yield from (f"job_recovery has no {name}" for name in {*recovery} - {"strategy", "max_restarts_on_errors"})


@functools.cache
def _sky_schemas() -> Any:
    """`sky.utils.schemas` without `sky` itself, which imports every cloud's client."""
    found = importlib.util.find_spec("sky")
    assert found is not None and found.submodule_search_locations
    package = types.ModuleType("sky")
    package.__path__ = list(found.submodule_search_locations)
    package.__dict__.update(__version__=importlib.metadata.version("skypilot"), __commit__="", __root_dir__="")
    sys.modules["sky"] = package
    autostop = types.ModuleType("sky.skylet.autostop_lib")  # asked for the names of modes that no launch file gives
    autostop.__dict__["AutostopWaitFor"] = types.SimpleNamespace(supported_modes=list)
    sys.modules["sky.skylet.autostop_lib"] = autostop
    schemas: Any = importlib.import_module("sky.utils.schemas")
    schemas._task_config_schema = dict  # of `config:`, which no launch file has
    return schemas


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{Path(name).name}: {'; '.join(problems(Path(name))) or 'valid'}")
