"""What every supernode runs."""

from pathlib import Path

from tierfed.flower import client_app

app = client_app(Path(__file__).with_name("run.toml"))
