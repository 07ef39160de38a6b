"""Explain a CLIP model: which pixels make a photograph fit one text better than others.

    python examples/clip.py                                     # scikit-image's cat, ViT-B-32 from the hub
    python examples/clip.py dog.jpg --texts "a dog" "a cat" "a sofa" --model ViT-S-32 --weights ours.pt

A wrapper makes a classifier of the image tower: a class for each text, its score the similarity of image and text times
the model's scale. The scores only mean something beside each other, so the map shows what speaks for one text and
against the others: change the list, and the map changes. Prints every text's probability, and insertion and deletion of
the map; writes the picture for the text that fits best.
"""

from __future__ import annotations

import argparse

import open_clip
import torch
from PIL import Image
from skimage.data import chelsea
from torch import Tensor, nn
from torchvision.transforms import Compose

from fampe_fast import FAMPE, Classifier, insertion_deletion
from fampe_fast.images import read_image
from fampe_fast.plots import explanation_figure, save_figure


class TextScores(nn.Module):
    """Compare images with texts that are fixed."""

    texts: Tensor

    def __init__(self, clip: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        self.tower = clip.visual
        with torch.no_grad():
            self.register_buffer("texts", clip.logit_scale.exp() * clip.encode_text(tokens, normalize=True))

    def forward(self, images: Tensor) -> Tensor:
        """Compute scores (B, texts) of normalised images (B, 3, H, W)."""
        features = nn.functional.normalize(self.tower(images), dim=-1)
        return features @ self.texts.T


def main() -> None:
    """Explain the text that fits best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", help="default: the cat of scikit-image")
    parser.add_argument("--texts", nargs="+", default=["a photo of a cat", "a photo of a dog", "a photo of a car"])
    parser.add_argument("--model", default="ViT-B-32", help="a name of open_clip's, or local-dir:FOLDER with weights")
    parser.add_argument("--weights", default="laion2b_s34b_b79k", help="a tag of open_clip's, or a file")
    parser.add_argument("--metric-passes", type=int, default=33, help="steps measured of each curve")
    parser.add_argument("--out", default="clip.png")
    arguments = parser.parse_args()

    weights = None if arguments.model.startswith("local-dir:") else arguments.weights
    clip, _, preprocess = open_clip.create_model_and_transforms(arguments.model, pretrained=weights)
    tokens = open_clip.get_tokenizer(arguments.model)(arguments.texts)
    clf = Classifier(
        TextScores(clip.eval(), tokens),
        mean=clip.visual.image_mean,
        std=clip.visual.image_std,
        input_size=clip.visual.image_size,
        transform=Compose(preprocess.transforms[:-1]),  # the classifier normalises by itself
        class_names=arguments.texts,
    ).eval()
    photograph = read_image(arguments.photograph) if arguments.photograph else Image.fromarray(chelsea())
    image = clf.transform(photograph)[None]
    with torch.inference_mode():
        probabilities = clf(image).softmax(1)[0]
    for text, probability in zip(arguments.texts, probabilities.tolist(), strict=True):
        print(f"{probability:.3f} {text}")
    best = int(probabilities.argmax())
    maps = FAMPE(clf).attribute(image, best)
    scores = insertion_deletion(clf, image, maps, best, passes=arguments.metric_passes)
    print(f"{arguments.texts[best]}: insertion {float(scores.insertion):.3f}, deletion {float(scores.deletion):.3f}")
    figure = explanation_figure(
        image[0], maps[0], class_name=arguments.texts[best], probability=float(probabilities[best])
    )
    save_figure(figure, arguments.out)


if __name__ == "__main__":
    main()
