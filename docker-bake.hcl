# The image for amd64 and arm64, pushed: docker buildx bake --push. The variables are those of the environment.
# With SOURCE_DATE_EPOCH the same input gives the same layers, since every file then has that time.

variable "TAG" {
  default = "users-api"
}

# Another base, best with its digest: python:3.13-slim@sha256:...
variable "PYTHON_IMAGE" {
  default = ""
}

# git rev-parse HEAD
variable "REVISION" {
  default = ""
}

# Where the source is published.
variable "SOURCE_URL" {
  default = ""
}

target "default" {
  platforms = ["linux/amd64", "linux/arm64"]
  tags      = [TAG]
  args = {
    PYTHON_IMAGE = PYTHON_IMAGE == "" ? null : PYTHON_IMAGE
  }
  labels = {
    "org.opencontainers.image.revision" = REVISION == "" ? null : REVISION
    "org.opencontainers.image.source"   = SOURCE_URL == "" ? null : SOURCE_URL
  }
  output = ["type=image,rewrite-timestamp=true"]
}
