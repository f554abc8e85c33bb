"""Reading of what other stages found out about latents."""

import pandas as pd

from hsae.evidence import Evidence
from hsae.files import read_json
from hsae.run import Stage


def read_evidence(stage: Stage) -> Evidence:
    """The tables of the other stages. Rules are text as it stands, "nan" and "NA" too."""
    proxies = pd.read_csv(stage.input("plots/interpretability_proxy.csv"), keep_default_na=False)
    numbers = ["latent", "density", "length", "proxy_f1", "proxy_f1_null", "proxy_intruder"]
    proxies[numbers] = proxies[numbers].apply(pd.to_numeric)
    return Evidence(
        edges=pd.read_csv(stage.input("plots/edges.csv")),
        proxies=proxies,
        information=pd.read_csv(stage.input("plots/mutual_information.csv")),
        recurrence=pd.read_csv(stage.input("plots/recurrence.csv")),
        effects=pd.read_csv(stage.input("plots/latent_effects.csv")),
        causal=read_json(stage.input("metrics/causal_tracing.json"))["tasks"],
    )
