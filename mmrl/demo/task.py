"""What the demos' tasks have in common: rows, media and a model are made once, and anew when the settings change."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A set-up step; what is there already is kept."""

    dir: str
    """Folder that everything is written to."""

    def prepare(self, seed: int) -> None:
        """Write the rows, the same for every seed, and the random model of this seed."""
        root = Path(self.dir)
        done = root / "settings.json"
        settings = json.dumps(asdict(self), indent=1)
        if not done.exists() or done.read_text() != settings:
            done.unlink(missing_ok=True)  # what an interruption leaves is of no settings
            self.write_rows(root)
            done.write_text(settings)
        if not (root / f"model-{seed}" / "config.json").exists():
            self.write_model(root / f"model-{seed}", seed)

    def write_rows(self, root: Path) -> None:
        """The files of rows, their media in folders of the same names."""
        raise NotImplementedError

    def write_model(self, path: Path, seed: int) -> None:
        """A tiny model with random weights, as an ordinary checkpoint."""
        raise NotImplementedError
