"""Task files in lm-eval's YAML format, and validation of their questions."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from jinja2 import Environment, TemplateError
from jinja2.meta import find_undeclared_variables
from pydantic import Field, field_validator, model_validator

from pruneflow.errors import InputError
from pruneflow.settings.base import Count, Name, Settings, check, read_yaml

Question = dict[str, Any]
Metric = Literal["acc", "acc_norm", "exact_match"]
METRICS: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("acc_norm", "acc"),
    "generate_until": ("exact_match",),
}
"""Supported metrics by output type; the first one that a task has is used."""


class TaskFacts(Settings):
    """The `metadata` of a task file."""

    version: float = Field(description="Increased when the prompt changes.")
    metric: Metric = Field(description="The accuracy used in reports and gates.")
    chance: Annotated[float, Field(ge=0, lt=1)] = Field(description="Accuracy of guessing.")
    shots: int | None = Field(None, ge=0, description="Few-shot examples in frozen prompts.")
    template: str | None = Field(None, description="Template of frozen prompts.")


class MetricEntry(Settings):
    """One entry of `metric_list`."""

    metric: Metric
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: list[str] | None = None


class FilterStep(Settings):
    """One step in extracting the answer from a generated text."""

    function: Literal["regex", "remove_whitespace", "take_first", "lowercase", "uppercase"]
    regex_pattern: str | None = None
    group_select: int | None = None
    fallback: str | None = None

    @field_validator("regex_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"regex_pattern {pattern!r} is not a regular expression ({error}): correct it"
            ) from None
        return pattern


class AnswerFilter(Settings):
    """One entry of `filter_list`; only the first of a task is used."""

    name: str
    filter: list[FilterStep] = Field(min_length=1)


class Generation(Settings):
    """Greedy, deterministic generation."""

    until: list[str]
    max_gen_toks: Count | None = None
    do_sample: Literal[False] = False
    temperature: Annotated[float, Field(ge=0, le=0)] | None = None


class Shots(Settings):
    """Few-shot examples, always the first of the list."""

    sampler: Literal["first_n"]
    samples: list[dict[str, str]] = Field(min_length=1)
    doc_to_text: str | None = None
    doc_to_target: str | None = None


class TaskFile(Settings):
    """An lm-eval task on local questions, with the keys that pruneflow supports."""

    task: Name
    dataset_path: Literal["json"]
    dataset_kwargs: dict[str, Any] | None = None
    test_split: Literal["test"]
    output_type: Literal["multiple_choice", "generate_until"]
    num_fewshot: int = Field(0, ge=0)
    fewshot_config: Shots | None = None
    description: str = ""
    doc_to_text: str = Field(min_length=1)
    doc_to_choice: str | list[str] | None = None
    doc_to_target: str = Field(min_length=1)
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    generation_kwargs: Generation | None = None
    filter_list: list[AnswerFilter] | None = None
    metric_list: list[MetricEntry] = Field(min_length=1)
    metadata: TaskFacts

    @model_validator(mode="after")
    def _fits(self) -> Self:
        generates = self.output_type == "generate_until"
        for key in ("doc_to_choice", "generation_kwargs", "filter_list"):
            given, allowed = getattr(self, key) is not None, (key == "doc_to_choice") != generates
            if allowed and not given and key != "filter_list":
                raise ValueError(f"{key} is missing: output_type {self.output_type} needs it")
            if given and not allowed:
                raise ValueError(
                    f"{key} has no effect with output_type {self.output_type}: remove it"
                )
        possible, listed = METRICS[self.output_type], [entry.metric for entry in self.metric_list]
        if self.metadata.metric not in possible:
            raise ValueError(
                f"metadata.metric is {self.metadata.metric}: with output_type {self.output_type} "
                f"use {' or '.join(sorted(possible))}"
            )
        if self.metadata.metric not in listed:
            raise ValueError(
                f"metric_list has no {self.metadata.metric}, which is metadata.metric: add it"
            )
        examples = len(self.fewshot_config.samples) if self.fewshot_config else 0
        if examples < self.num_fewshot or (examples and not self.num_fewshot):
            raise ValueError(
                f"num_fewshot is {self.num_fewshot} and fewshot_config has {examples} samples: "
                "correct one of them"
            )
        _ = self.question_fields
        return self

    @cached_property
    def question_fields(self) -> frozenset[str]:
        """Fields of a question that the templates use.

        Raises:
            ValueError: a template is not valid Jinja.
        """
        found: set[str] = set()
        environment = Environment()
        for key in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            template = getattr(self, key)
            if not isinstance(template, str):
                continue
            try:
                variables = find_undeclared_variables(environment.parse(template))
            except TemplateError as error:
                raise ValueError(f"{key} is not a valid template ({error}): correct it") from None
            # A template without variables is the name of a field, as in lm-eval.
            found |= (variables - set(environment.globals)) or {template}
        return frozenset(found)

    def problem(self, question: Question) -> str | None:
        """Return why a question is invalid, or None; lm-eval would count it as answered wrong."""
        for field in sorted(self.question_fields - {"choices", "label", "answer"}):
            if not isinstance(question.get(field), str) or not question[field].strip():
                return f"{field} is missing or empty"
        if self.output_type == "generate_until":
            answer = question.get("answer")
            answers = answer if isinstance(answer, list) else [answer]
            if not answers or not all(isinstance(text, str) and text.strip() for text in answers):
                return "answer is missing or empty"
            return None
        choices, label = question.get("choices"), question.get("label")
        if not isinstance(choices, list) or len(choices) < 2:
            return "choices must be a list of two or more texts"
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            return "a choice is empty"
        if type(label) is not int or not 0 <= label < len(choices):
            return f"label is {label!r}, and must be the index of a choice"
        return None


class Pool(NamedTuple):
    """A task and all its usable questions.

    Attributes:
        task: the task file.
        questions: in order of their ids.
        dropped: number of dropped rows by reason.
        facts: `source`, `split` and `licence`, for the manifest.
    """

    task: TaskFile
    questions: list[Question]
    dropped: dict[str, int]
    facts: dict[str, Any]


def read_task(path: Path) -> TaskFile:
    """Read and validate the task file `TASK.yaml`.

    Raises:
        InputError: it is missing, is not YAML, or a key is unknown or invalid.
    """
    task = check(TaskFile, read_yaml(path), path)
    if task.task != path.stem:
        raise InputError(
            f"{path}: task is {task.task!r} and must be {path.stem!r}, the name of the file"
        )
    return task


def task_text(task: TaskFile, questions: str, origin: str) -> str:
    """Return the text of a task file that lm-eval can run.

    Args:
        task: the task.
        questions: path of the file with its questions, for lm-eval.
        origin: the source of the task, for a comment.
    """
    values = {
        **task.model_dump(mode="json", exclude_unset=True, exclude_none=True),
        "dataset_kwargs": {"data_files": {"test": questions}},
    }
    body = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return f"# Written by the stage questions from {origin}.\n{body}"


class _Dumper(yaml.SafeDumper):
    """Writes line ends as escapes, because prompts have many of them."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if "\n" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's log messages and progress bars."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
