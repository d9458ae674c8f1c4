"""The same platform on PostgreSQL and an S3 server: another deployment is other addresses, nothing else."""

from pathlib import Path

from modelkit.checkpoints import MANIFEST
from servicekit.objects import open_object_store
from tests.support.platform import Platform, Workload, losses
from tests.support.s3 import SeaweedServer
from tunesmith.task.v1.spec_pb2 import METHOD_LORA
from tunesmith.task.v1.task_pb2 import STATE_COMPLETED, STATE_STOPPED


async def test_train_stop_and_resume_on_postgresql_and_s3(
    tmp_path: Path, postgres_url: str, seaweed_server: SeaweedServer
) -> None:
    address = seaweed_server.address("e2e-platform")
    settings = {"TUNESMITH_DATABASE_URL": postgres_url, "TUNESMITH_OBJECT_STORE_URL": address}
    with Platform(tmp_path / "data", settings=settings) as platform, platform.client() as client:
        workload = Workload.create(platform.data_dir / "datasets" / "other")
        task_id = client.tasks.create(workload.request("other stores", method=METHOD_LORA, max_steps=400)).id
        for response in client.tasks.watch(task_id):
            if response.event.type == "checkpoint.saved":
                break
        client.tasks.stop(task_id)
        assert client.tasks.wait(task_id).state == STATE_STOPPED
        (*_, newest) = client.tasks.checkpoints(task_id)
        store = open_object_store(address)
        try:
            keys = {info.key async for info in store.list(f"tasks/{task_id}/")}
        finally:
            await store.close()
        assert f"{newest.prefix}/{MANIFEST}" in keys
        assert f"{newest.prefix}/adapter_model.safetensors" in keys
        client.tasks.resume(task_id, checkpoint_step=newest.step)
        for response in client.tasks.watch(task_id):
            if response.event.progress.step > newest.step:
                break
        client.tasks.stop(task_id)
        assert client.tasks.wait(task_id).state in (STATE_STOPPED, STATE_COMPLETED)
        assert set(range(1, newest.step + 1)) <= set(losses(client, task_id))
    assert not (tmp_path / "data" / "tunesmith.db").exists()
    assert not any((tmp_path / "data" / "objects").iterdir())
