"""What the superlink runs."""

from pathlib import Path

from tierfed.flower import server_app

app = server_app(Path(__file__).with_name("run.toml"))
