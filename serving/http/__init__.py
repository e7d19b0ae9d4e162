"""`ris-serve http`: a bundle behind HTTP, with FastAPI and uvicorn.

FastAPI, since its OpenAPI pages come from the code, and since Gradio and most of the field's
servers stand on the same Starlette; uvicorn, since its supervisor starts dead workers again.
"""
