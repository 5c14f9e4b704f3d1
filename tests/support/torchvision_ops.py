"""Stand-ins for torchvision's compiled operators, where its build does not fit that of PyTorch."""

import torch
import torchvision


def nms(boxes, scores, iou_threshold):
    """Indices of the boxes that no box of a higher score overlaps by more than the threshold."""
    order, kept = scores.argsort(descending=True).tolist(), []
    overlaps = torchvision.ops.box_iou(boxes, boxes).numpy()
    while order:
        best = order.pop(0)
        kept.append(best)
        order = [other for other in order if overlaps[best, other] <= iou_threshold]
    return torch.tensor(kept, dtype=torch.int64)


def roi_align(maps, rois, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False):
    """Bilinear samples of the maps at the middles of the cells of each region: [R, C, *output_size]."""
    height, width = output_size
    found = []
    for region in rois:
        left, top, right, bottom = region[1:] * spatial_scale
        across = left + (torch.arange(width) + 0.5) / width * (right - left).clamp(min=1)
        down = top + (torch.arange(height) + 0.5) / height * (bottom - top).clamp(min=1)
        of_image = maps[int(region[0])][None]
        size = torch.tensor([maps.shape[3], maps.shape[2]])
        grid = torch.stack(torch.meshgrid(across, down, indexing='xy'), -1) / size * 2 - 1
        found.append(torch.nn.functional.grid_sample(of_image, grid[None], align_corners=False)[0])
    return torch.stack(found) if found else maps.new_zeros((0, maps.shape[1], height, width))


def replace_missing(monkeypatch):
    """Puts the stand-ins in place of operators that do not work."""
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError:
        monkeypatch.setattr('torchvision.ops.boxes.nms', nms)
        monkeypatch.setattr('torchvision.ops.poolers.roi_align', roi_align)
