"""Explain a folder of photographs as a data set, and read its maps from the Parquet files.

    python examples/read_a_data_set.py
    python examples/read_a_data_set.py --photographs photos/ --model resnet50 --out maps

Runs ``fampe-fast batch photos/ --out maps``, by default on four photographs of scikit-image. It may be interrupted at
any time, and goes on when it is given again. Then prints a table by pandas, which leaves the maps unread; the mean
probability of each class by pyarrow; and the shape and the strongest pixel of each map by ``read_maps``. Take that one
for the maps themselves: the files hold them in half precision, divided by ``map_scale``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import skimage.data
from PIL import Image

from fampe_fast import read_maps
from fampe_fast.cli import main as fampe_fast


def main() -> None:
    """Explain, and read back in three ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="a folder; default: scikit-image's, written to photographs/")
    parser.add_argument("--model", default="resnet50", help="a timm or torchvision name, or a folder")
    parser.add_argument("--out", type=Path, default=Path("maps"))
    arguments = parser.parse_args()

    photographs = arguments.photographs
    if photographs is None:
        photographs = Path("photographs")
        photographs.mkdir(exist_ok=True)
        for name in ("astronaut", "chelsea", "coffee", "rocket"):
            Image.fromarray(getattr(skimage.data, name)()).save(photographs / f"{name}.png")
    code = fampe_fast(["batch", str(photographs), "--out", str(arguments.out), "--model", arguments.model])
    if code:
        sys.exit(code)  # as the command's: 1 where some images failed, 2 where all did, 130 where it was interrupted

    shards = ds.dataset(arguments.out / "maps", format="parquet")
    columns = ["image_id", "uri", "class", "probability", "error"]
    table: pd.DataFrame = shards.to_table(columns=columns).to_pandas()
    print(table.assign(uri=table["uri"].map(lambda uri: Path(uri).name)).fillna("").to_string(index=False))
    means = shards.to_table(columns=["class", "probability"]).group_by("class").aggregate([("probability", "mean")])
    for row in means.to_pylist():
        print(f"{row['class']}: mean probability {row['probability_mean']:.3f}")
    for shard in read_maps(arguments.out, columns=["uri", "map"], errors=False):
        for uri, values in zip(shard["uri"], shard["map"], strict=True):  # float32 (C, H, W)
            y, x = divmod(int(values.sum(0).argmax()), values.shape[-1])
            print(f"{Path(uri).name}: {values.shape}, strongest at row {y}, column {x}")


if __name__ == "__main__":
    main()
