"""The templates in runbooks: one lookup per value, sandboxed; an undefined name is an error, never "".

Only `{{ engine.name }}`, `{{ inputs.version }}` and the like, alone or inside text. Statements, calls, filters,
tests and arithmetic are refused when the runbook is loaded, so that a runbook stays data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jinja2.debug  # noqa: F401 - jinja2 imports it at the first error; after a package upgrade that is too late
from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent.errors import ConfigurationError, Mistake
from agent.model import Json

NAMES = ("engine", "host", "inputs", "lock")
"""What a template may look into. Never the finding: a runbook acts on names, not on what a machine said."""

_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
_PLAIN = (nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Const, nodes.Template)


def is_template(text: str) -> bool:
    """Whether this text holds Jinja2 of any kind."""
    return any(mark in text for mark in ("{{", "{%", "{#"))


def strings(value: Json, path: str) -> Iterator[tuple[str, str]]:
    """Every string inside a value, with its place."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from strings(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from strings(item, f"{path}[{index}]")


def sees(value: Json, name: str) -> bool:
    """Whether any template inside the value looks into `name`. The templates are valid."""
    return any(
        node.name == name
        for _, text in strings(value, "")
        if is_template(text)
        for node in _ENVIRONMENT.parse(text).find_all(nodes.Name)
    )


def mistakes(text: str, inputs: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with one template, in words."""
    try:
        tree = _ENVIRONMENT.parse(text)
    except TemplateError as error:
        return [f"not a valid template: {error}"]
    if "{#" in text:
        return ["a template only looks something up: no comments"]
    wrong = []
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _PLAIN):
            wrong.append(f"a template only looks something up: no {type(node).__name__}")
        elif isinstance(node, nodes.Name) and node.name not in NAMES:
            wrong.append(f"unknown name {node.name!r}")
        elif isinstance(node, nodes.Getattr):
            inside = isinstance(node.node, nodes.Name) and node.node.name == "inputs"
            if inside and node.attr not in inputs:
                wrong.append(f"unknown input {node.attr!r}")
            if node.attr.startswith("_"):
                wrong.append(f"{node.attr!r} is private")
    return wrong


def resolve(value: Json, known: Mapping[str, Json], file: str, path: str) -> Json:
    """The value with every template looked up. A template that is the whole value keeps the type it finds.

    Raises ConfigurationError when a name is undefined or an attribute is not there.
    """
    if isinstance(value, dict):
        return {key: resolve(item, known, file, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, known, file, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str) or not is_template(value):
        return value
    try:
        whole = _whole(value)
        if whole is not None:
            found = _ENVIRONMENT.compile_expression(whole, undefined_to_none=False)(**known)
            if isinstance(found, StrictUndefined):
                raise ConfigurationError([Mistake(file, path, f"{value} is not defined here")])
            return found
        return _ENVIRONMENT.from_string(value).render(**known)
    except TemplateError as error:
        raise ConfigurationError([Mistake(file, path, f"{value}: {error}")]) from error


def _whole(text: str) -> str | None:
    """The expression, when the text is exactly one `{{ expression }}`."""
    stripped = text.strip()
    if not (stripped.startswith("{{") and stripped.endswith("}}")) or "{{" in stripped[2:]:
        return None
    return stripped[2:-2].strip("-+ ")
