"""What raters found in the human study: accuracy, clarity, agreement; n = 0 as long as nobody has answered."""

import hashlib
from pathlib import Path

from hsae import run
from hsae.files import write_csv, write_figure, write_json
from hsae.study import figures, responses, scoring, trials
from hsae.study.answers import ScoreConfig


def main() -> None:
    """Run the stage."""
    with run.stage("score_study") as stage:
        config = stage.params(ScoreConfig, "score_study")
        content = stage.input("data/study/trials.json").read_bytes()
        found = responses.loads(stage.input("study/responses.jsonl").read_text(encoding="utf-8"))
        study = trials.loads(content.decode())
        metrics, frame = scoring.score(study, hashlib.sha256(content).hexdigest(), found, config)
        write_json(Path("metrics/study.json"), metrics)
        write_csv(Path("plots/study.csv"), frame)
        write_figure(Path("plots/study.png"), figures.results(frame, metrics["raters"], metrics["simulated"]))


if __name__ == "__main__":
    main()
