"""The engine over HTTP: FastAPI and uvicorn, of the extra `serve`."""
