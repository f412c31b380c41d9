"""The Flower apps: a server with Flower's strategies, and simulated clients in Ray's processes."""

import functools
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx
from flwr.simulation import run_simulation

from training.datasets.splits import Dataset, Splits, load
from training.federated.averaging import Weights, private_average
from training.federated.local import accuracy, build, train_locally, weights_of
from training.federated.plan import Setting
from training.federated.splits import clients_rows

# Of Ray's processes, which hold the clients in turn.
CLIENT_RESOURCES = {"num_cpus": 1, "num_gpus": 0.0}


def simulate(setting: Setting, splits: Splits) -> tuple[list[float], Weights]:
    """Run all rounds; returns the accuracies on the validation images, from round 0, and the last weights."""
    accuracies: list[float] = []
    last: list[Weights] = []

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        last[:] = [arrays.to_numpy_ndarrays()]
        accuracies.append(accuracy(last[0], splits.validation))
        return MetricRecord({"validation_accuracy": accuracies[-1]})

    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, _: Context) -> None:
        _strategy(setting).start(
            grid=grid,
            initial_arrays=ArrayRecord(weights_of(build(setting.seed))),
            num_rounds=setting.rounds,
            train_config=ConfigRecord({"setting": setting.to_json()}),
            evaluate_fn=evaluate,
        )

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=setting.clients,
        backend_config={"client_resources": CLIENT_RESOURCES, "init_args": {"include_dashboard": False}},
    )
    return accuracies, last[0]


client = ClientApp()


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Train one client on its own images."""
    config = message.content["config"]
    setting, number = Setting.from_json(config["setting"]), int(context.node_config["partition-id"])
    before = message.content["arrays"].to_numpy_ndarrays()
    data = _data_of(setting, number)
    key = np.random.SeedSequence((setting.seed, int(config["server-round"]), number))
    seed = int(key.generate_state(1)[0])
    after, loss = train_locally(before, data, setting.local, seed)
    metrics = MetricRecord({"num-examples": len(data), "train_loss": loss})
    return Message(RecordDict({"arrays": ArrayRecord(list(after)), "metrics": metrics}), reply_to=message)


def _data_of(setting: Setting, number: int) -> Dataset:
    """A client's images. A real client has no others; a simulated one takes its part of all."""
    train = _load(setting.data_dir)
    rows = clients_rows(train.labels, setting.clients, setting.split, setting.seed)[number]
    return Dataset(train.images[rows], train.labels[rows])


@functools.cache
def _load(data_dir: str) -> Dataset:
    """Once per process, because Ray's processes live as long as the simulation."""
    return load(Path(data_dir)).train


def _strategy(setting: Setting) -> FedAvg:
    if setting.algorithm == "dp-fedavg":
        return PrivateFedAvg(setting)
    common = {"fraction_train": setting.participation, "fraction_evaluate": 0.0}
    common["min_available_nodes"] = setting.clients
    if setting.algorithm == "fedprox":
        return FedProx(**common, proximal_mu=setting.proximal)
    return FedAvg(**common)


class PrivateFedAvg(FedAvg):  # type: ignore[misc]
    """FedAvg with differential privacy for each client.

    Flower's own DifferentialPrivacyServerSideFixedClipping is not used: it samples a fixed number of clients,
    divides by it, and weighs them by their images. The accountant's mechanism does none of this.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(fraction_evaluate=0.0, min_available_nodes=setting.clients)
        self._setting = setting
        self._rng = np.random.default_rng(secrets.randbits(128))  # known to nobody, as the guarantee assumes
        self._before: Weights = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask each client with probability `participation`, independently of the others."""
        self._before = arrays.to_numpy_ndarrays()
        messages = list(super().configure_train(server_round, arrays, config, grid))
        drawn = self._rng.random(len(messages)) < self._setting.participation
        return [message for message, taken in zip(messages, drawn, strict=True) if taken]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Average the clipped updates, with noise; the clients' losses are not private, and are dropped."""
        valid, failed = self._check_and_log_replies(replies, is_train=True)
        if failed:
            raise RuntimeError(f"round {server_round}: {len(failed)} clients failed, expected none")
        weights = private_average(
            self._before,
            [reply.content["arrays"].to_numpy_ndarrays() for reply in valid],
            bound=self._setting.clip_norm,
            noise_multiplier=self._setting.noise_multiplier,
            expected=self._setting.participation * self._setting.clients,
            rng=self._rng,
        )
        return ArrayRecord(weights), None
