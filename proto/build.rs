//! Compiles the schema without a system `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = "distill/v1/teacher.proto";
    println!("cargo::rerun-if-changed={schema}");
    let descriptors = protox::compile([schema], ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("distill_descriptor.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .bytes(".distill.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
