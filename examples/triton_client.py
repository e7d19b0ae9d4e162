"""Asks a Triton server with the `ris` model about an image, over HTTP or gRPC.

It needs tritonclient alone:

    pip install "tritonclient[http,grpc]"
    python examples/triton_client.py photo.jpg "left man" "the dog"
    python examples/triton_client.py photo.jpg "left man" --grpc --url 127.0.0.1:8001
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tritonclient.utils import InferenceServerException


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("expressions", nargs="+")
    parser.add_argument("--grpc", action="store_true")
    parser.add_argument("--url")
    parser.add_argument(
        "--mask", type=Path, help="write the masks, uint8 [N, H, W], to this .npy file"
    )
    return parser.parse_args()


def bytes_input(triton, name, values):
    """A BYTES input of one row: the leading 1 is Triton's batch axis, one image a request."""
    tensor = triton.InferInput(name, [1, len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([values], np.object_))
    return tensor


def ask(arguments):
    """The server's response to one image and its expressions."""
    if arguments.grpc:
        import tritonclient.grpc as triton
    else:
        import tritonclient.http as triton
    default_url = "127.0.0.1:8001" if arguments.grpc else "127.0.0.1:8000"
    client = triton.InferenceServerClient(arguments.url or default_url)

    texts = [text.encode() for text in arguments.expressions]
    image = bytes_input(triton, "image", [arguments.image.read_bytes()])
    expression = bytes_input(triton, "expression", texts)

    # only what is asked for is computed and sent: leave "mask" out where run lengths will do
    names = ["rle_counts", "rle_size", "score", "is_no_target", "note", "from_cache"]
    if arguments.mask:
        names.append("mask")
    outputs = [triton.InferRequestedOutput(name) for name in names]
    try:
        return client.infer("ris", [image, expression], outputs=outputs)
    except InferenceServerException as error:
        raise SystemExit(f"refused: {error.message()}") from None


def main():
    arguments = parse_arguments()
    response = ask(arguments)

    size = response.as_numpy("rle_size")[0].tolist()
    for i, text in enumerate(arguments.expressions):
        answer = {
            "expression": text,
            "rle": {"size": size, "counts": response.as_numpy("rle_counts")[0, i].decode()},
            "score": float(response.as_numpy("score")[0, i]),
            "is_no_target": bool(response.as_numpy("is_no_target")[0, i]),
            "note": response.as_numpy("note")[0, i].decode(),
            "image_was_known": bool(response.as_numpy("from_cache")[0, 0]),
        }
        print(json.dumps(answer))
    if arguments.mask:
        np.save(arguments.mask, response.as_numpy("mask")[0])


if __name__ == "__main__":
    main()
