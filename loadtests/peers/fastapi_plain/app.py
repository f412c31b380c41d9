"""FastAPI as in its tutorial: a pydantic body, a function per request, no batching."""

import os

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from loadtests.peers.session import Classifier

app = FastAPI()
classifier = Classifier()


class Images(BaseModel):
    images: list[list[list[int]]]


class Probabilities(BaseModel):
    probabilities: list[list[float]]


@app.post("/classify")
def classify(body: Images) -> Probabilities:
    images = np.array(body.images, np.uint8)
    return Probabilities(probabilities=classifier(images).tolist())


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning", access_log=False)
