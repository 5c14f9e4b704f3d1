"""torchvision's Faster R-CNN on an exported ResNet, trained on PASCAL VOC 07+12.

    simclr export --workdir=runs/imagenet --format=torchvision --out=exports/r50
    python configs/dense/torchvision_voc.py --weights=exports/r50 --data=/data/voc

It needs torchvision and safetensors. Batch, learning rate, schedule and sizes of the images are those of the published
row in README.md. The detector has a feature pyramid, where that row has the C4 head.
"""

import argparse
import random
import sys

import torch
import torchvision
from torch.utils.data import ConcatDataset, DataLoader
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN

CLASSES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable', 'dog'),
    *('horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'),
)
SIZES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)


def make_detector(weights, num_classes, **settings):
    """Faster R-CNN with a feature pyramid on an exported ResNet. All of its layers learn, norms included.

    Args:
        weights: Directory of `simclr export --format=torchvision`.
        num_classes: Number of classes with the background.
        settings: Further arguments of torchvision's FasterRCNN.
    """
    sys.path.insert(0, weights)
    import simclr_resnet

    path = f'{weights}/model.safetensors'
    facts = simclr_resnet.facts(path)
    norms = {'image_mean': facts['mean'] or [0.0] * 3, 'image_std': facts['std'] or [1.0] * 3}
    body = simclr_resnet.adapt(getattr(torchvision.models, f'resnet{facts["depth"]}')(), path)
    layers = {f'layer{number}': str(number - 1) for number in range(1, 5)}
    channels = [body.inplanes // 2**number for number in (3, 2, 1, 0)]
    backbone = BackboneWithFPN(body, layers, channels, 256)
    return FasterRCNN(backbone, num_classes, **norms | settings)


def train(model, batches, steps, learning_rate=0.02, milestones=(18000, 22000), warmup=100):
    """Trains a detector by SGD with step decay.

    Args:
        model: Detector of torchvision.
        batches: Iterator of (images, targets) as torchvision's detectors take them.
        steps: Number of updates.
        learning_rate: Peak of the learning rate, after the warm-up.
        milestones: Steps after which the rate is divided by 10.
        warmup: Steps of linear warm-up.
    """
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step in range(steps):
        rate = learning_rate * 0.1 ** sum(step >= milestone for milestone in milestones)
        for group in optimizer.param_groups:
            group['lr'] = rate * min(1, (step + 1) / warmup)
        loss = sum(model(*next(batches)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f'step {step}/{steps}, loss {loss.item():.3f}', flush=True)
    return model.eval()


def voc_example(image, annotation):
    """(image [3, H, W] in [0, 1], {'boxes', 'labels'}) of an example of VOCDetection, mirrored half of the time."""
    objects = annotation['annotation']['object']
    corners = [[float(found['bndbox'][name]) for name in ('xmin', 'ymin', 'xmax', 'ymax')] for found in objects]
    boxes, labels = torch.tensor(corners), torch.tensor([1 + CLASSES.index(found['name']) for found in objects])
    image = torchvision.transforms.functional.to_tensor(image)
    if random.random() < 0.5:
        image, width = image.flip(2), image.shape[2]
        boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return image, {'boxes': boxes, 'labels': labels}


def voc_batches(data, device, batch_size=16):
    """Endless batches of VOC 2007 and 2012 trainval."""
    parts = [
        torchvision.datasets.VOCDetection(data, year, 'trainval', transforms=voc_example) for year in ('2007', '2012')
    ]
    loader = DataLoader(
        ConcatDataset(parts), batch_size, shuffle=True, num_workers=8, drop_last=True, collate_fn=lambda batch: batch
    )
    while True:
        for batch in loader:
            images, targets = zip(*batch, strict=True)
            yield (
                [image.to(device) for image in images],
                [{name: values.to(device) for name, values in target.items()} for target in targets],
            )


def main():
    """Trains on PASCAL VOC 07+12 and writes the detector's state dict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', required=True, help='directory of simclr export --format=torchvision')
    parser.add_argument('--data', required=True, help='directory with VOCdevkit/')
    parser.add_argument('--out', default='detector.pth', help='file to write')
    options = parser.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    model = make_detector(options.weights, 1 + len(CLASSES), min_size=SIZES, max_size=1333).to(device)
    train(model, voc_batches(options.data, device), steps=24000)
    torch.save(model.state_dict(), options.out)


if __name__ == '__main__':
    main()
