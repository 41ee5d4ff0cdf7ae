# The whole road on a GPU server: TensorRT 10.13, CUDA 13, Python 3.12.
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" reptrt-server \
#       engine mobileone_s0 --weights weights.pth --data images --device cuda
FROM nvcr.io/nvidia/tensorrt:25.09-py3

# Ubuntu marks its Python as its own; in an image there is no other user of it.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY calibrators calibrators
COPY engines engines
COPY pipeline pipeline
RUN pip install '.[tensorrt]'

# Any --user may run it, so nothing depends on a home folder.
RUN useradd reptrt
ENV HOME=/tmp
USER reptrt
WORKDIR /work
ENTRYPOINT ["reptrt"]
CMD ["doctor"]
