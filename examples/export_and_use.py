"""A personal model as a file, used without PyTorch and tierfed: python export_and_use.py [--rounds 20]

What `tierfed export RUN --device NAME` does, from Python; needs the extra `export`.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
from own_model import machines

import tierfed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as temporary:
        folder, file = Path(temporary) / "run", Path(temporary) / "machine-3.onnx"
        data = tierfed.from_table(machines(), label="good", device="machine", team="hall")
        config = {
            "run": {"rounds": rounds, "out": str(folder)},
            "model": {"name": "mlp", "options": {"hidden": [16]}},
            "algorithm": {"name": "ditto", "lr": 0.1},
        }
        for model, accuracy in tierfed.run(config, data=data).scores.items():
            print(f"{model:14} {accuracy:.3f}")
        done = tierfed.export(folder, "3", file, data=data)
        for stage in done.variants:
            print(f"{stage.name}: accuracy {stage.score:.3f} on the machine's test data, {stage.bytes} bytes")

        session = onnxruntime.InferenceSession(file)  # from here on: what the machine does
        names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
        _, probabilities, label = session.run(None, {"sample": np.array([[1.0, 0.5]], np.float32)})
        print(f"machine 3 says {names[label[0]]!r}, probability {probabilities[0].max():.2f}")


if __name__ == "__main__":
    main()
