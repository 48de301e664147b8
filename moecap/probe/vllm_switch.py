"""A recording worker with sets of CUDA graphs with the probe in them and without: to measure what the probe costs.

Of those without there are two, so that one can be held against the other: what differs between them is no cost of it.

For benchmarks only. It holds the graphs of vLLM's V1 model runner apart by their wrappers' tables.
"""

from __future__ import annotations

from typing import Any

from vllm.compilation.cuda_graph import CUDAGraphWrapper

from moecap.probe.vllm_worker import RecordingWorker, routers_of


class SwitchableWorker(RecordingWorker):
    """`moecap_switch("on" | "off" | "control")` between steps; the last one is off too."""

    def compile_or_warm_up_model(self) -> Any:
        """Captures everything three times."""
        times = super().compile_or_warm_up_model()
        self._graphs = {"on": self._take_graphs()}
        self._listeners = {layer: router.capture_fn for layer, router in routers_of(self.vllm_config)}
        self._listen(on=False)
        for name in ("off", "control"):
            self.model_runner.capture_model()
            self._graphs[name] = self._take_graphs()
        self.moecap_switch("on")
        return times

    def moecap_switch(self, which: str) -> None:
        """From the next step on."""
        self._listen(on=which == "on")
        for wrapper in CUDAGraphWrapper._all_instances:
            wrapper.concrete_cudagraph_entries = self._graphs[which][id(wrapper)]

    def _take_graphs(self) -> dict[int, Any]:
        taken = {}
        for wrapper in CUDAGraphWrapper._all_instances:
            taken[id(wrapper)] = wrapper.concrete_cudagraph_entries
            wrapper.concrete_cudagraph_entries = {}
        return taken

    def _listen(self, *, on: bool) -> None:
        for layer, router in routers_of(self.vllm_config):
            router.set_capture_fn(self._listeners[layer] if on else None)
