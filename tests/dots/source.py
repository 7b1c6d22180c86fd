"""dots:COUNT: grey pictures of several sizes with up to four bright dots, drawn from the number of the sample."""

import numpy as np

from tests.dots.target import dots


class DotsSource:
    kind, classes, fields = "dots", (), dots.fields

    def __init__(self, rest):
        self.uri = f"dots:{rest}"
        self.labels = np.zeros(0)
        self.objects = np.array([len(self.known(i)["dots"]) for i in range(int(rest))], np.int32)

    def __len__(self):
        return len(self.objects) if hasattr(self, "objects") else 10**9

    def known(self, i):
        """Without the image."""
        rng = np.random.default_rng(i)
        height, width = rng.integers(32, 64, 2).tolist()
        count = 0 if i % 5 == 4 else 1 + i % 4
        cells = rng.permutation(4)[:count]  # one to a quarter of the picture, so that none hides another
        places = np.stack([cells % 2, cells // 2], -1) + rng.uniform(0.3, 0.7, (count, 2))
        return {"dots": places * (width / 2, height / 2), "index": i, "size": (height, width)}

    def __getitem__(self, i):
        i = range(len(self))[i]
        sample = self.known(i)
        height, width = sample.pop("size")
        y, x = np.mgrid[:height, :width] + 0.5
        image = np.full((height, width), 20.0)
        for at_x, at_y in sample["dots"]:
            image += 220 * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * 2.0**2))
        image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return {**sample, "image": np.repeat(image[:, :, None], 3, 2)}

    def where(self, i):
        return f"dots, picture {range(len(self))[i]}"
