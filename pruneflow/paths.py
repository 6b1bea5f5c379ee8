"""Paths of all files in a workspace, relative to its root."""

from pathlib import Path

DOMAINS_FILE = Path("configs/domains.yaml")
GATES_FILE = Path("configs/gates.yaml")
LM_EVAL = Path("configs/lm_eval")
SWEEP_FILE = Path("configs/sweep.yaml")
SOURCES_LOCK = Path("data/sources.lock")
DVC_LOCK = Path("dvc.lock")

ENVIRONMENT = Path("data/environment.json")  # installed versions
QUESTIONS = Path("data/questions")
DOCUMENTS = Path("data/calibration/documents")
VALIDATION = Path("data/calibration/validation.json")
CALIBRATION_SET = Path("data/calibration/set")
HELD_OUT = Path("data/calibration/held_out")
CHECKPOINTS = Path("data/checkpoints")
MODEL = Path("data/model")
# In a round's directory: a folder of its own, because serving engines read every *.safetensors
# next to the model.
STATISTICS = "statistics"
DISAGREEMENT = "disagreement.json"
RECOVERY = Path(".pruneflow/recovery")  # checkpoints of the current recovery
RECOVERY_DONE = Path(".pruneflow/recovery.done")  # the same, about to be removed
SWEEP = Path(".pruneflow/sweep")  # one workspace per recipe

REPORTS = Path("data/reports")
BASELINE = REPORTS / "baseline.json"
EVALUATION = REPORTS / "evaluation.json"
LATENCY = REPORTS / "latency.json"
SUMMARY = REPORTS / "summary.json"
PAGE = REPORTS / "report.html"
METRICS = REPORTS / "metrics.json"  # read by `dvc metrics`
PLOTS = REPORTS / "plots"  # data of dvc.yaml's plots
CARD = REPORTS / "model_card.md"
DATA_CARD = REPORTS / "data_card.md"
DECISION = REPORTS / "decision.json"
IN_PRODUCTION = REPORTS / "production.json"
SWEEP_TABLE = REPORTS / "sweep.json"
