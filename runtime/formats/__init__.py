"""Files of labelling tools and training code: COCO, YOLO and labelme, over all images of a run."""
