"""MLServer: a custom runtime under its adaptive batching; base64 tensors of the Open Inference Protocol."""

import asyncio

from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from loadtests.peers.session import Classifier, rows_of


class Digits(MLModel):
    async def load(self) -> bool:
        self._classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = rows_of(b"".join(Base64Codec.decode_input(payload.inputs[0])))
        probabilities = await asyncio.to_thread(self._classifier, images)
        output = NumpyCodec.encode_output("probabilities", probabilities)
        return InferenceResponse(model_name=self.name, outputs=[output])
