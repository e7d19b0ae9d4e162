"""Asks a Triton server with the `ris` model about an image, over HTTP or gRPC. Needs tritonclient
alone.

pip install "tritonclient[http,grpc]"
python examples/triton_client.py photo.jpg "left man" "the dog"
python examples/triton_client.py photo.jpg "left man" --grpc --url 127.0.0.1:8001
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tritonclient.utils import InferenceServerException


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("expressions", nargs="+")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--url")
    parser.add_argument(
        "--mask", type=Path, help="write the masks, uint8 [N, H, W], to this .npy file"
    )
    args = parser.parse_args()
    if args.grpc:
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton
    client = triton.InferenceServerClient(
        args.url or ("127.0.0.1:8001" if args.grpc else "127.0.0.1:8000")
    )

    # one image a request: the leading 1 is Triton's batch axis
    image = triton.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[args.image.read_bytes()]], np.object_))
    expression = triton.InferInput("expression", [1, len(args.expressions)], "BYTES")
    expression.set_data_from_numpy(
        np.array([[text.encode() for text in args.expressions]], np.object_)
    )

    # only what is asked for is computed and sent: leave "mask" out where run lengths will do
    names = ["rle_counts", "rle_size", "score", "is_no_target", "note", "from_cache"] + [
        "mask"
    ] * bool(args.mask)
    outputs = [triton.InferRequestedOutput(name) for name in names]
    try:
        response = client.infer("ris", [image, expression], outputs=outputs)
    except InferenceServerException as error:
        raise SystemExit(f"refused: {error.message()}") from None
    size = response.as_numpy("rle_size")[0].tolist()
    for i, text in enumerate(args.expressions):
        answer = {
            "expression": text,
            "rle": {"size": size, "counts": response.as_numpy("rle_counts")[0, i].decode()},
            "score": float(response.as_numpy("score")[0, i]),
            "is_no_target": bool(response.as_numpy("is_no_target")[0, i]),
            "note": response.as_numpy("note")[0, i].decode(),
            "image_was_known": bool(response.as_numpy("from_cache")[0, 0]),
        }
        print(json.dumps(answer))
    if args.mask:
        np.save(args.mask, response.as_numpy("mask")[0])


if __name__ == "__main__":
    main()
